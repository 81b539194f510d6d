"""Where work runs: schedulers and their workers, what watches them, the machine's resources, progress bars.

May import: errors, words. Used by reading, for the size of tasks, and by whoever starts work.
"""
