"""Device code. Arguments in capitals are known when a kernel is compiled; strides and widths count elements.

Arithmetic is in float32 whatever the element type, rounded where the reference of the op rounds.
"""
