"""What does Search gain over fewer seeds at equal cost?"""
