"""The method: templates, the masks derived from them, and the images that masks make.

May import: columns, detector, conversion, counts and what lies below. Used by imaging, evaluation, recipes, the page.
"""
