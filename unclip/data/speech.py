"""What the packages of words do not say, written by hand: spellings, ways to name a style, small words of languages."""

from __future__ import annotations

# British, American.
SPELLINGS: tuple[tuple[str, str], ...] = tuple(
    (british, american)
    for british, american in (
        pair.split("/")
        for pair in """
        colour/color coloured/colored colourful/colorful colours/colors grey/gray greys/grays greyish/grayish
        aeroplane/airplane aeroplanes/airplanes theatre/theater theatres/theaters centre/center centred/centered
        doughnut/donut doughnuts/donuts tyre/tire tyres/tires pyjamas/pajamas moustache/mustache
        moustaches/mustaches jewellery/jewelry jeweller/jeweler favourite/favorite armour/armor armoured/armored
        neighbour/neighbor honour/honor flavour/flavor flavoured/flavored harbour/harbor labour/labor vapour/vapor
        humour/humor parlour/parlor saviour/savior savoury/savory metre/meter metres/meters litre/liter
        fibre/fiber sabre/saber sceptre/scepter spectre/specter calibre/caliber lustre/luster plough/plow
        cheque/check programme/program whisky/whiskey yoghurt/yogurt mould/mold mouldy/moldy sulphur/sulfur
        draught/draft catalogue/catalog dialogue/dialog licence/license defence/defense offence/offense
        traveller/traveler travelling/traveling woollen/woolen archaeologist/archeologist manoeuvre/maneuver
        omelette/omelet cosy/cozy tumour/tumor axe/ax analyse/analyze organise/organize sceptic/skeptic
        smoulder/smolder pretence/pretense skilful/skillful kerb/curb gaol/jail waggon/wagon
        """.split()
    )
)

# Style -> how else a person may name it; a style's own words are those of `captions`.
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "noto": ("google emoji", "google style", "android emoji"),
    "3D": (
        "3-d", "3 d", "three dimensional", "3d toy", "toy in 3d", "3d render", "3d rendering", "3d model",
        "3d object", "3d figure", "3d graphics", "3d cartoon", "clay figure", "plastic toy",
    ),
    "flat": ("flat art", "flat vector art", "flat colours", "flat colors", "flat graphics", "vector art",
             "flat illustration", "2d"),
    "glossy": ("shiny gradient", "glossy plastic", "gradients"),
    "twemoji": ("twitter style", "tweet emoji", "discord emoji"),
    "blob": ("classic blob", "blobby", "blobby emoji", "old google emoji", "old android emoji", "classic android",
             "google blob", "classic blob emoji", "blobs"),
    "emojione": ("joypixels",),
    "firefox": ("mozilla", "firefox os", "mozilla emoji"),
    "silhouette": ("black shape", "black icon", "monochrome icon", "shadow figure", "solid black", "pictogram",
                   "black and white silhouette"),
    "outline": ("outlines", "thick outlines"),
    "line art": ("lineart", "line-art", "ink drawing", "pen drawing", "outline drawing", "line drawings"),
}  # fmt: skip

# The languages of emojibase-data besides English, roughly by how many people speak them.
LANGUAGES = (
    "es", "zh", "hi", "fr", "bn", "pt", "ru", "ms", "de", "ja", "vi", "ko", "it", "th", "pl", "uk", "nl", "hu", "sv",
    "da", "fi", "nb", "lt", "et", "zh-hant", "es-mx",
)  # fmt: skip

# Language -> English ("" = nothing) -> its words for it, separated by "/".
HELPERS: dict[str, dict[str, str]] = {
    "es": {
        "": "un/una/unos/unas/el/la/los/las/por favor/quiero/quisiera/dibuja/dibújame/muéstrame/puedes dibujar/"
        "me puedes dibujar/una imagen de/una imagen del/un dibujo de/un dibujo del/una foto de/me gustaría/ver",
        "with": "con", "and": "y", "of": "de/del",
    },
    "fr": {
        "": "un/une/des/le/la/les/s'il te plaît/s'il vous plaît/je veux/je voudrais/dessine/dessine-moi/dessinez/"
        "montre-moi/peux-tu dessiner/pouvez-vous dessiner/peux-tu me dessiner/une image de/un dessin de/une photo de",
        "with": "avec", "and": "et", "of": "de/du",
    },
    "pt": {
        "": "um/uma/uns/umas/o/a/os/as/por favor/quero/queria/desenhe/desenha/mostre-me/podes desenhar/"
        "você pode desenhar/uma imagem de/um desenho de/uma foto de/gostaria de",
        "with": "com", "and": "e", "of": "de/do/da",
    },
    "de": {
        "": "ein/eine/einen/einem/einer/der/die/das/den/bitte/ich möchte/ich will/ich hätte gern/zeichne/zeichne mir/"
        "zeichne mir bitte/male/male mir/male mir bitte/zeige mir/zeig mir/kannst du/kannst du mir/zeichnen/malen/"
        "ein bild von/ein bild von einem/ein bild von einer/ein foto von/eine zeichnung von",
        "with": "mit", "and": "und", "of": "von",
    },
    "it": {
        "": "un/uno/una/il/lo/la/i/gli/le/per favore/voglio/vorrei/disegna/disegnami/mostrami/puoi disegnare/"
        "puoi disegnarmi/un'immagine di/un disegno di/una foto di",
        "with": "con", "and": "e", "of": "di/del/della",
    },
    "nl": {
        "": "een/de/het/alsjeblieft/graag/ik wil/ik wil graag/teken/teken een/laat me/zien/kun je/tekenen/"
        "een foto van/een plaatje van/een tekening van/een afbeelding van",
        "with": "met", "and": "en", "of": "van",
    },
    "sv": {
        "": "en/ett/jag vill ha/rita/rita en/rita ett/en bild av/tack/snälla",
        "with": "med", "and": "och", "of": "av",
    },
    "da": {"": "en/et/jeg vil have/tegn/tegn en/tegn et/et billede af/tak", "with": "med", "and": "og", "of": "af"},
    "nb": {"": "en/ei/et/jeg vil ha/tegn/tegn en/tegn et/et bilde av/takk", "with": "med", "and": "og", "of": "av"},
}  # fmt: skip
HELPERS |= {
    "zh": {
        "": "的/色/一只/一个/一张/一辆/请/请画/画/帮我画/给我画/我想要/我要/图片/照片/图",
        "with": "戴着/带着/拿着", "and": "和",
    },
    "ja": {
        "": "の/な/を/が/ください/描いて/描いてください/絵/の絵/の絵を描いて/"
        "の絵を描いてください/お願いします/欲しい/画像/の画像",
        "and": "と",
    },
}  # fmt: skip
HELPERS["es-mx"] = HELPERS["es"]

# Language -> English colour -> its other forms (gender, number, case), which no emoji's name has.
COLOUR_FORMS: dict[str, dict[str, str]] = {
    "es": {"red": "roja/rojos/rojas", "yellow": "amarilla", "black": "negra", "white": "blanca", "purple": "morada"},
    "fr": {"green": "verte", "blue": "bleue", "purple": "violette", "black": "noire", "white": "blanche"},
    "it": {"red": "rossa", "yellow": "gialla", "black": "nera", "white": "bianca"},
    "pt": {"red": "vermelha", "yellow": "amarela", "black": "preta/preto", "white": "branca", "purple": "roxa"},
    "de": {
        english: "/".join(german + ending for ending in ("", "e", "er", "es", "en", "em"))
        for english, german in {
            "red": "rot", "yellow": "gelb", "green": "grün", "blue": "blau", "brown": "braun", "black": "schwarz",
            "white": "weiß",
        }.items()
    },
}  # fmt: skip
