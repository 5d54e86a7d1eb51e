# CPU image: the server, the default soup and its base model; nothing is fetched at run time.
#
#   docker build --tag ladle .
#   docker run --rm --read-only --publish 127.0.0.1:8080:8080 ladle
#   docker run --rm --volume ./my-soup:/soup:ro --publish 127.0.0.1:8080:8080 ladle serve --base /soup/base
FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin ladle
RUN LADLE_HOME=/models target/release/ladle import smollm2-135m-instruct

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-create-home --uid 10001 ladle
COPY --from=build /src/target/release/ladle /usr/local/bin/ladle
COPY --from=build /models /models
COPY backbones /soup
USER 10001
ENV LADLE_HOME=/models LADLE_SOUP=/soup LADLE_HOST=0.0.0.0
EXPOSE 8080
# For the default port without TLS; orchestrators ask /ready themselves.
HEALTHCHECK --interval=10s --start-period=60s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /ready HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["ladle"]
CMD ["serve"]
