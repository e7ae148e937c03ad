"""The paper's studies: many runs from one YAML file, resumable and shared, with a table beside the paper's numbers."""
