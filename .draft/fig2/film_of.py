def film_of(rows: dict[str, Tensor], words: list[str], zoom: int = 4) -> bytes:
    """An endless animated PNG of some films, name -> (n, 64, 64) in [0, 1], one above the other, at
    a quarter of the world's speed. `words`: n texts, one per frame, at the top right. All frames
    share 24 greys, or a still picture would flicker."""
    bands = torch.cat([torch.as_tensor(film).cpu()[:, ROOM.band] for film in rows.values()], 1)
    high, wide = bands.shape[1] * zoom, round(FRAME_SIZE * zoom * PIXEL_SHAPE)
    font, pictures = ImageFont.load_default(4 * zoom), []
    for frame, word in zip((11 * (23 * bands).round()).byte().numpy(), words):
        pictures.append(picture := Image.fromarray(frame).resize((wide, high), 0))
        pen = ImageDraw.Draw(picture)
        pen.text((wide - zoom, 0), word, 0, font, "ra")
        for k, name in enumerate(rows):
            pen.text((zoom, k * high / len(rows)), name, 0, font)
    how = {"save_all": True, "append_images": pictures[1:], "duration": 80, "loop": 0}
    pictures[0].save(file := io.BytesIO(), "PNG", optimize=True, **how)
    return file.getvalue()
