"""A page to look at: choose sites, width and regions, see masks and images follow, confirm on the full data, save.

May import: report, recipe, plot, masks and what lies below. Used by `tdm view` and `tdm.view`.
"""
