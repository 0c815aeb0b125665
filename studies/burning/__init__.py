"""Does Optimize Noise stay good when it is left running?"""
