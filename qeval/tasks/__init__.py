"""Tasks: what is measured on a loaded model. One file per task."""
