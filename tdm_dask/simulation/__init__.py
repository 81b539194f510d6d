"""Scans that are simulated by multislice, of perfect and defective specimens, straight into stores.

May import: columns, conversion and what lies below. Used by workflows and tests.
"""
