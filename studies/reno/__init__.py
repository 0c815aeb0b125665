"""Does ReNO with a latent reward do what it claims?"""
