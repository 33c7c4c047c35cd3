"""Loading, adapting, rounding and saving model directories; safetensors only, by digest, never remote code."""
