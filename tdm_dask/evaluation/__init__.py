"""What images are worth: cross-talk, noise, held-out halves, and what a mask is evidence for.

May import: masks and what lies below. Used by figures, recipes, the report and the page.
"""
