"""HyperSpy's signals: to and from labelled arrays, regions of interest, masks as signals, templates tuned by hand."""
