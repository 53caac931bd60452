"""Results as documents: text, JSON, Markdown, SARIF."""
