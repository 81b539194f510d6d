"""What is told: the report as a page and as a notebook, counts and files in a few lines, images as files.

May import: recipe, plot and what lies below. Used by the command line and by `counts.tdm`.
"""
