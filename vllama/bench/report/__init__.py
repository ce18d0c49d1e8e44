"""A result as people read it: on the console, as Markdown, CSV and HTML, and as plots."""
