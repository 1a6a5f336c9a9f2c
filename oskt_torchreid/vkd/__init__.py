"""VKD, views knowledge distillation (Porrello et al., ECCV 2020): sets of views, a teacher that sees many of them and a
student that sees few.
"""
