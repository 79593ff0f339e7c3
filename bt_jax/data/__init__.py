"""Host data: sources of images, the order of examples, the two views, and the pipeline that makes batches of them.

Nothing outside this folder imports TensorFlow, and here it is imported only when a host pipeline is built.
"""
