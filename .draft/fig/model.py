# @title V, M and C, and what flows between them
model_picture = asset("model.png")
if model_picture:
    display(Picture(data=model_picture.read_bytes(), format="png", width=880))
