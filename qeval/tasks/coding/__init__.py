"""Tasks whose answers are programs: asked, run in the sandbox, counted."""
