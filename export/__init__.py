"""Turn official checkpoints into bundles of ONNX graphs (torch and onnx live here)."""
