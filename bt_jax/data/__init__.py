"""Host data: sources of images, the order of examples, their views, and the feeds that bring batches of them to the mesh.

Nothing outside this folder imports TensorFlow, and here it is imported only when a host pipeline is built.
"""
