"""The network: a decoder family read from Hugging Face folders, with safetensors weights."""
