"""Passes over the counts: a reduction is a value (start, add, merge, finish); graphs run it, one read each.

May import: reading and what lies below; knows no labels. Used by every wing that computes from counts.
"""
