"""What do Safety Guidance and Safety Gate keep out, and what do they cost?"""
