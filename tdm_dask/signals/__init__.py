"""HyperSpy's signals: to and from labelled arrays, regions of interest, masks as signals, templates tuned by hand.

May import: plot, masks and what lies below. Used by `tdm_dask.hyperspy`.
"""
