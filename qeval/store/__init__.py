"""What is kept: records, quantized models."""
