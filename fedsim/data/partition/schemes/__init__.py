"""The partition schemes: which client holds which sample. One file is one scheme.

    owner : int64 (N,), client of each sample, -1 = unused
    N samples, n clients, C classes, alpha = dirichlet_alpha

A scheme's file has a line in `fedsim.config.families.SCHEMES`, and holds

    Options                 its settings, a `Section`, where it has any; the first one that is
                            not null stands in the partition's label
    assign(ask, options)    which samples each client holds: a `Draft`, or a `Population`
    SHARES_SAMPLES = True   where clients may hold the same samples
    COUNTS_CLIENTS = True   where the data can say how many clients there are

Every scheme ends after a fixed amount of work. Samples are moved to meet a minimum client size
afterwards (`fedsim.data.partition.repair`).
"""
