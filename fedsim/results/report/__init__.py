"""What people read: the page, the terminal's table, LaTeX, CSV and figures."""
