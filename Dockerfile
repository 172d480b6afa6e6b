# One image for every role: `docker run turnkeeper worker`, `docker run turnkeeper gateway`.

FROM node:24-slim AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm install --no-save --no-audit --no-fund --loglevel=error
COPY tsconfig.json tsconfig.build.json ./
COPY setup setup
COPY src src
RUN npm run build

FROM node:24-slim AS packages
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm install --no-save --omit=dev --no-audit --no-fund --loglevel=error
# Temporal's core comes built for every platform at some 30 MB each; this image is of one.
RUN find node_modules/@temporalio/core-bridge/releases -mindepth 1 -maxdepth 1 \
    ! -name "$(uname -m)-unknown-linux-gnu" -exec rm -r {} +

FROM node:24-slim
# Node brings its own certificates; Temporal's core looks for the system's, for TLS to Temporal Cloud.
# As process 1, Node would never see a SIGTERM that comes before its handler is there: tini passes it on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates tini \
    && rm -rf /var/lib/apt/lists/*
ENV NODE_ENV=production \
    TURNKEEPER_HOST=0.0.0.0 \
    TURNKEEPER_WORKFLOW_BUNDLE=/app/dist/workflows.bundle.js
WORKDIR /app
COPY --from=packages /app/node_modules node_modules
COPY --from=build /app/dist dist
COPY package.json LICENSE ./
USER node
EXPOSE 7823
# Where a machine has much memory, V8 lets its young generation grow to 128 MB: see docs/deployment.md.
ENTRYPOINT ["tini", "--", "node", "--enable-source-maps", "--max-semi-space-size=16", "dist/src/cli.js"]
CMD ["gateway"]
