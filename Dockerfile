# CPU image: the server, the import tool and the default soup. The base model is fetched at the
# first start into the volume /models (or mount one that holds it).
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin ladle

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 ladle \
    && install --directory --owner ladle /models
COPY --from=build /src/target/release/ladle /usr/local/bin/ladle
COPY --chown=ladle backbones /soup
USER ladle
ENV LADLE_HOME=/models
VOLUME /models
EXPOSE 8080
HEALTHCHECK CMD python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready')"
ENTRYPOINT ["sh", "-c", "ladle import smollm2-135m-instruct && exec ladle serve /soup --host 0.0.0.0 \"$@\"", "ladle"]
