"""Types of the encoders' options: their bounds live in the constructors' signatures."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

Width: TypeAlias = Annotated[int, Field(ge=2, le=8192, description="embedding size d")]
Hidden: TypeAlias = Annotated[int, Field(ge=1, le=65536, description="units of the hidden layer")]
Dropout: TypeAlias = Annotated[float, Field(ge=0, le=0.95, description="share of units dropped")]
Pie: TypeAlias = Annotated[bool, Field(description="attend to the local features (PIE block)")]
Augment: TypeAlias = Annotated[
    bool, Field(description="shift, mirror and erase pictures at random while training")
]
Vocabulary: TypeAlias = Annotated[
    int, Field(ge=512, le=1 << 20, description="largest number of text pieces")
]
MaxTokens: TypeAlias = Annotated[
    int, Field(ge=2, le=4096, description="text pieces read per text; the rest is cut")
]
