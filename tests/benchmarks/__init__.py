"""The package's speed, measured side by side with its peers and with the hardware.

`command` reads the options; `cases` says what is compared with what, and which figures are wanted; `ours`, `peers` and
`limits` do the jobs; `workers` runs each of them in a process of its own and measures it; `rounds` asks them in turn
and compares their answers; `figures` and `tables` are what is printed; `data` makes the files.
"""
