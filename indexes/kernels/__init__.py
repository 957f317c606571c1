"""numba kernels: flat functions over typed arrays, no objects, no strings. Each has its slow definition in the tests.

They release the GIL, so that callers spread a batch over Python threads, and are cached on disk after the first call.
"""
