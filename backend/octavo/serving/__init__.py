"""Talks: Triton's requests in, Triton's responses and metrics out.

The only package, with 1/model.py, that imports triton_python_backend_utils.
"""
