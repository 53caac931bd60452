"""From what a user gives to an intervention that is ready to apply: presets, configs of other tools, options."""
