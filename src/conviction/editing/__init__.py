"""Knowledge editing: facts written into MLP matrices, measured, undoable."""
