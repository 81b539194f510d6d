"""Whole analyses from one file: the recipe, what it asks for, its plan, its trial runs, and the run itself.

May import: evaluation, masks and what lies below. Used by the report, the page and the command line.
"""
