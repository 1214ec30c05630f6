# A server of milora: no compiler, no shell tools beyond the base's, no root. docs/security.md says how to run it.
#
#   docker build -t milora .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp \
#     -v milora-data:/data -v ./models:/models:ro -p 8000:8000 milora --model /models/MODEL

FROM node:22-bookworm-slim AS build
WORKDIR /build
COPY package.json package-lock.json .npmrc ./
# .npmrc lets no package run scripts; what milora needs of them comes prebuilt with the packages.
RUN npm ci --no-progress
COPY tsconfig.json tsconfig.build.json ./
COPY src src
COPY studio studio
COPY assets assets
RUN npm run --silent build && npm prune --omit=dev --no-progress

FROM node:22-bookworm-slim
ENV NODE_ENV=production MILORA_SERVE_HOST=0.0.0.0 MILORA_SERVE_PORT=8000 MILORA_SERVE_DATA=/data MILORA_SERVE_AUTH=required
WORKDIR /app
# Of root, and not to be written to by who serves.
COPY --from=build /build/package.json ./
COPY --from=build /build/node_modules node_modules
COPY --from=build /build/dist dist
COPY LICENSE ./
COPY assets assets
COPY configs configs
COPY native native
# What builds and installs has no place where strangers are served.
RUN rm -rf /usr/local/lib/node_modules /usr/local/bin/npm /usr/local/bin/npx /usr/local/bin/corepack /opt/yarn* \
  && ln -s /app/dist/cli/main.js /usr/local/bin/milora && chmod +x dist/cli/main.js \
  && mkdir /data && chown 10001:10001 /data && chmod 700 /data
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + process.env.MILORA_SERVE_PORT + '/healthz').then((a) => process.exit(a.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "/app/dist/cli/main.js", "serve"]
