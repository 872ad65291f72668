"""What a run tells people and leaves behind: the console, metrics, samples and the end summary."""
