"""VKD, views knowledge distillation (ECCV 2020): the teacher sees many views of an identity, the student few."""
