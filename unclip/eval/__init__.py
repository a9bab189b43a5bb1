"""Evaluation: retrieval, nearest real pictures in an independent feature space, Fréchet distance, reports.

features.py    MobileNetV2 and EfficientNet-lite0 features: judges that had no part in the model
frechet.py     Fréchet distance between two sets of features (FD-MobileNetV2; never called FID)
retrieval.py   at which rank a caption or an embedding finds a right picture
bootstrap.py   means with 95 % intervals
choice.py      which prompts are asked: stratified over splits, seeded
judge.py       subject and style of a picture by its nearest real pictures
attributes.py  colour and skin tone of a picture by its pixels
distribution.py  precision, recall, CMMD, diversity: pictures as a set
model.py       a model as evaluation sees it
emoji.py       the report on an emoji model (generated.py: on its pictures); tables.py and grids.py show it
drawing.py     making the pictures, resumable
memorisation.py  how many of them are copies of training pictures
gallery.py     a fixed list of prompts (gallery.json), drawn with fixed seeds, nothing picked
card.py        the model card
cli.py         `unclip eval …`
"""
