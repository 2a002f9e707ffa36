"""The drawing room: colours, text, shapes, scale bars, sheets of pictures, and their files.

A picture is uint8 RGB, (H, W, 3), C-contiguous. What draws on one draws in place.
"""
