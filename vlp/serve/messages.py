"""What the service takes and gives, and how much of it: the OpenAPI schema is made of these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_TERMS = 16
MOST_HITS = 1000
DEEPEST = 10_000
"""Hits of a query that can be reached, page by page."""
MOST_CAPTIONS = 512
"""Class names times templates of one request."""

Text = Annotated[str, Field(max_length=1000)]
Key = Annotated[str, Field(max_length=1000)]
Image = Annotated[
    str,
    Field(min_length=1, description="A picture file's bytes in base64; never a path or a URL."),
]
Vector = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=8192)]
Weight = Annotated[float, Field(ge=-100, le=100)]
Number = Annotated[int, Field(ge=0, lt=2**63, description="Of a picture: its id for good.")]


class Asked(BaseModel):
    """A body; a field that nobody reads is refused, since it may be one that is misspelt."""

    model_config = ConfigDict(extra="forbid")


def _example(**fields: Any) -> ConfigDict:
    """Return what lays a body beside its route in /docs, to be copied."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Term(Asked):
    """A text, an image, a picture of the index or a feature, and how much it weighs."""

    text: Text | None = None
    image: Image | None = None
    key: Key | None = Field(default=None, description="Of a picture of the index: more like this.")
    vector: Vector | None = Field(default=None, description="A feature, as /embed gives it.")
    weight: Weight = Field(default=1.0, description="Below 0: away from it.")

    @model_validator(mode="after")
    def _has_one(self) -> "Term":
        given = [value for value in (self.text, self.image, self.key, self.vector) if value]
        if len(given) != 1 or self.weight == 0 or (self.text and not self.text.strip()):
            raise ValueError("give one of text, image, key and vector, and a weight other than 0")
        return self


class SearchRequest(Asked):
    """What is searched for. Without terms, every picture in its order."""

    model_config = _example(
        terms=[{"text": "a red heart"}, {"text": "a face", "weight": -0.5}], k=20, min_percentile=95
    )
    terms: Annotated[list[Term], Field(max_length=MOST_TERMS)] = []
    where: Annotated[list[Annotated[str, Field(max_length=5000)]], Field(max_length=32)] = Field(
        default=[],
        description="Conditions on the metadata, as `width>=512`, `lot=[1, 2]`, `name~cat`.",
    )
    k: Annotated[int, Field(ge=1, le=MOST_HITS)] = 60
    offset: Annotated[int, Field(ge=0, lt=DEEPEST)] = 0
    min_percentile: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None,
        description="Leave out pictures that are not nearer than so many percent of all.",
    )
    fold: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None, description="Cosine from which a picture is folded into one that looks alike."
    )
    sort: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="A field, key or caption; with a minus in front from the last."
    )


class FoundPicture(BaseModel):
    """A picture of the index."""

    id: int
    key: str
    caption: str
    score: float | None = Field(default=None, description="Cosine to the query, from -1 to 1.")
    percentile: float | None = Field(
        default=None, description="Percent of all pictures it is nearer than."
    )
    folded: list[str] = Field(default=[], description="Keys of pictures that look like it.")
    metadata: dict[str, Any]


class SearchAnswer(BaseModel):
    """Pictures, best first."""

    hits: list[FoundPicture]
    more: bool = Field(description="Whether there are hits after these.")
    milliseconds: float


class ClassifyRequest(Asked):
    """A picture and the names to choose from."""

    model_config = _example(key="00042", classes=["cat", "dog"], templates=["a photo of a {}"])
    image: Image | None = None
    key: Key | None = None
    vector: Vector | None = None
    classes: Annotated[list[Text], Field(min_length=1, max_length=MOST_CAPTIONS)]
    templates: Annotated[list[Text], Field(min_length=1, max_length=100)] = ["a photo of a {}"]

    @model_validator(mode="after")
    def _fits(self) -> "ClassifyRequest":
        if len([value for value in (self.image, self.key, self.vector) if value]) != 1:
            raise ValueError("give one of image, key and vector")
        if len(self.classes) * len(self.templates) > MOST_CAPTIONS:
            raise ValueError(f"give at most {MOST_CAPTIONS} classes times templates")
        return self


class ClassAnswer(BaseModel):
    """A name."""

    class_: Annotated[str, Field(alias="class")]
    probability: float
    cosine: float


class ClassifyAnswer(BaseModel):
    """Every name, the likeliest first."""

    classes: list[ClassAnswer]
    kind: Literal["softmax", "sigmoid"] = Field(
        description="softmax: the names share one probability; sigmoid: each has its own."
    )


class EmbedRequest(Asked):
    """Texts and images to embed."""

    model_config = _example(texts=["a red heart", "a face"])
    texts: Annotated[list[Text], Field(max_length=256)] = []
    images: Annotated[list[Image], Field(max_length=32)] = []


class EmbedAnswer(BaseModel):
    """Unit-length features, in the order of the request."""

    texts: list[list[float]]
    images: list[list[float]]


class DownloadRequest(Asked):
    """Pictures of the index, and as what they are wanted."""

    model_config = _example(ids=[0, 1, 2], kind="json")
    ids: Annotated[list[Number], Field(min_length=1, max_length=MOST_HITS)]
    kind: Literal["pictures", "json", "keep_list"] = "json"


class FieldAbout(BaseModel):
    """A field of the metadata that can be filtered by."""

    name: str
    kind: Literal["choice", "number"]
    values: list[dict[str, Any]] = []
    least: float | None = None
    most: float | None = None


class About(BaseModel):
    """What is served."""

    name: str
    model: str
    pictures: int
    dim: int
    fields: list[FieldAbout]
