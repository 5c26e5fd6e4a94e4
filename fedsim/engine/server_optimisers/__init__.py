"""The server's optimisers: the average of the clients' changes stands in for a gradient.

Reddi et al., 2021, algorithm 2. Each file has `Options` and `step(mean, moments, lr, options)`:

    mean     average change of the clients, by name
    moments  what the last call returned; {} in round 1
    lr       factor of the step
    returns  the change of the model, and the moments for the next round
"""
