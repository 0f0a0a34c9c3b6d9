"""The proof of an export: PyTorch's answers, the comparison with them, and the report."""
