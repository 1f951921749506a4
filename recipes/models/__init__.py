"""Models: new tiny ones, SmolLM2, local folders and the Hugging Face Hub; their facts; their export."""
