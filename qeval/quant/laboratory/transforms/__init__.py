"""What is done to a float block before its weights are rounded, and changes nothing that it computes.

    scaling.py      a scale per channel, moved from an operation into the linears that read it
    awq.py          AWQ's scales: a power of the inputs' magnitude, searched block by block
    smoothquant.py  SmoothQuant's scales: between the inputs' and the weights' largest values

A transform is the driver's ``prepare`` (driver.py). Which operations take a scale: architectures.py.
"""
