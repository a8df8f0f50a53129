"""What all else stands on: no mathematics, and nothing of covkeras above it.

validation    every refusal: what was expected, what came, the remedy
classifiers   what a classifier must be; probing: by its answers
files         whole files, one writer at a time
interrupts    Ctrl-C and SIGTERM at the next safe point
devices       which devices, and the arithmetic that suits them
timing        fair timing, in turns
startup       Keras on TensorFlow, whose first lines are kept quiet
"""
