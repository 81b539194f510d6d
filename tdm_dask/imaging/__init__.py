"""What is seen without a template: deflection, phase, components, the data matrix, line profiles, thickness.

May import: masks and what lies below. Used by figures, workflows and HyperSpy.
"""
