package dev.credentialbroker.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Keeps identities and tasks. For operators, on a listener of its own.
 * Backends, scopes and named bearer sources live in the configuration only, and no RPC can set a command, a path or a
 * URL. Identities live in the store only. Secrets go in and never come out: they are sealed when they arrive, and no
 * answer carries a private key, a token or a backend's task id.
 * Rules for every RPC of this service:
 *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
 *   - Who: a principal that the configuration names as an operator.
 *   - The broker sets a deadline of 60 s where the call has none or a longer one.
 *   - `request_id`: 1 to 64 printable ASCII characters, made anew for each intention and kept for its retries. It is
 *     remembered for 24 hours: the same content gets the same answer, other content REQUEST_ID_REUSED.
 *   - `etag`: if set, the change is made only if the resource still has it, else ABORTED GENERATION_CHANGED. Unset means
 *     that the change is made to whatever is there.
 *   - `comment`: why it is done, for the audit record, at most 256 bytes. May be unset.
 *   - Every call, refused ones included, leaves an audit record.
 *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
 *     NOT_ALLOWED, FIELD_INVALID, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class BrokerAdminGrpc {

  private BrokerAdminGrpc() {}

  public static final java.lang.String SERVICE_NAME = "credentialbroker.v1.BrokerAdmin";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.CreateIdentityRequest,
      dev.credentialbroker.v1.CreateIdentityResponse> getCreateIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "CreateIdentity",
      requestType = dev.credentialbroker.v1.CreateIdentityRequest.class,
      responseType = dev.credentialbroker.v1.CreateIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.CreateIdentityRequest,
      dev.credentialbroker.v1.CreateIdentityResponse> getCreateIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.CreateIdentityRequest, dev.credentialbroker.v1.CreateIdentityResponse> getCreateIdentityMethod;
    if ((getCreateIdentityMethod = BrokerAdminGrpc.getCreateIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getCreateIdentityMethod = BrokerAdminGrpc.getCreateIdentityMethod) == null) {
          BrokerAdminGrpc.getCreateIdentityMethod = getCreateIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.CreateIdentityRequest, dev.credentialbroker.v1.CreateIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "CreateIdentity"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.CreateIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.CreateIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("CreateIdentity"))
              .build();
        }
      }
    }
    return getCreateIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.ImportIdentityRequest,
      dev.credentialbroker.v1.ImportIdentityResponse> getImportIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ImportIdentity",
      requestType = dev.credentialbroker.v1.ImportIdentityRequest.class,
      responseType = dev.credentialbroker.v1.ImportIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.ImportIdentityRequest,
      dev.credentialbroker.v1.ImportIdentityResponse> getImportIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.ImportIdentityRequest, dev.credentialbroker.v1.ImportIdentityResponse> getImportIdentityMethod;
    if ((getImportIdentityMethod = BrokerAdminGrpc.getImportIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getImportIdentityMethod = BrokerAdminGrpc.getImportIdentityMethod) == null) {
          BrokerAdminGrpc.getImportIdentityMethod = getImportIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.ImportIdentityRequest, dev.credentialbroker.v1.ImportIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ImportIdentity"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ImportIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ImportIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("ImportIdentity"))
              .build();
        }
      }
    }
    return getImportIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetIdentityRequest,
      dev.credentialbroker.v1.GetIdentityResponse> getGetIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetIdentity",
      requestType = dev.credentialbroker.v1.GetIdentityRequest.class,
      responseType = dev.credentialbroker.v1.GetIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetIdentityRequest,
      dev.credentialbroker.v1.GetIdentityResponse> getGetIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetIdentityRequest, dev.credentialbroker.v1.GetIdentityResponse> getGetIdentityMethod;
    if ((getGetIdentityMethod = BrokerAdminGrpc.getGetIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getGetIdentityMethod = BrokerAdminGrpc.getGetIdentityMethod) == null) {
          BrokerAdminGrpc.getGetIdentityMethod = getGetIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.GetIdentityRequest, dev.credentialbroker.v1.GetIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetIdentity"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("GetIdentity"))
              .build();
        }
      }
    }
    return getGetIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListIdentitiesRequest,
      dev.credentialbroker.v1.ListIdentitiesResponse> getListIdentitiesMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListIdentities",
      requestType = dev.credentialbroker.v1.ListIdentitiesRequest.class,
      responseType = dev.credentialbroker.v1.ListIdentitiesResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListIdentitiesRequest,
      dev.credentialbroker.v1.ListIdentitiesResponse> getListIdentitiesMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListIdentitiesRequest, dev.credentialbroker.v1.ListIdentitiesResponse> getListIdentitiesMethod;
    if ((getListIdentitiesMethod = BrokerAdminGrpc.getListIdentitiesMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getListIdentitiesMethod = BrokerAdminGrpc.getListIdentitiesMethod) == null) {
          BrokerAdminGrpc.getListIdentitiesMethod = getListIdentitiesMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.ListIdentitiesRequest, dev.credentialbroker.v1.ListIdentitiesResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListIdentities"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ListIdentitiesRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ListIdentitiesResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("ListIdentities"))
              .build();
        }
      }
    }
    return getListIdentitiesMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.UpdateIdentityRequest,
      dev.credentialbroker.v1.UpdateIdentityResponse> getUpdateIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "UpdateIdentity",
      requestType = dev.credentialbroker.v1.UpdateIdentityRequest.class,
      responseType = dev.credentialbroker.v1.UpdateIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.UpdateIdentityRequest,
      dev.credentialbroker.v1.UpdateIdentityResponse> getUpdateIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.UpdateIdentityRequest, dev.credentialbroker.v1.UpdateIdentityResponse> getUpdateIdentityMethod;
    if ((getUpdateIdentityMethod = BrokerAdminGrpc.getUpdateIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getUpdateIdentityMethod = BrokerAdminGrpc.getUpdateIdentityMethod) == null) {
          BrokerAdminGrpc.getUpdateIdentityMethod = getUpdateIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.UpdateIdentityRequest, dev.credentialbroker.v1.UpdateIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "UpdateIdentity"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.UpdateIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.UpdateIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("UpdateIdentity"))
              .build();
        }
      }
    }
    return getUpdateIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.RotateIdentityKeyRequest,
      dev.credentialbroker.v1.RotateIdentityKeyResponse> getRotateIdentityKeyMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "RotateIdentityKey",
      requestType = dev.credentialbroker.v1.RotateIdentityKeyRequest.class,
      responseType = dev.credentialbroker.v1.RotateIdentityKeyResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.RotateIdentityKeyRequest,
      dev.credentialbroker.v1.RotateIdentityKeyResponse> getRotateIdentityKeyMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.RotateIdentityKeyRequest, dev.credentialbroker.v1.RotateIdentityKeyResponse> getRotateIdentityKeyMethod;
    if ((getRotateIdentityKeyMethod = BrokerAdminGrpc.getRotateIdentityKeyMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getRotateIdentityKeyMethod = BrokerAdminGrpc.getRotateIdentityKeyMethod) == null) {
          BrokerAdminGrpc.getRotateIdentityKeyMethod = getRotateIdentityKeyMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.RotateIdentityKeyRequest, dev.credentialbroker.v1.RotateIdentityKeyResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "RotateIdentityKey"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RotateIdentityKeyRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RotateIdentityKeyResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("RotateIdentityKey"))
              .build();
        }
      }
    }
    return getRotateIdentityKeyMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.ReauthenticateIdentityRequest,
      dev.credentialbroker.v1.ReauthenticateIdentityResponse> getReauthenticateIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ReauthenticateIdentity",
      requestType = dev.credentialbroker.v1.ReauthenticateIdentityRequest.class,
      responseType = dev.credentialbroker.v1.ReauthenticateIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.ReauthenticateIdentityRequest,
      dev.credentialbroker.v1.ReauthenticateIdentityResponse> getReauthenticateIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.ReauthenticateIdentityRequest, dev.credentialbroker.v1.ReauthenticateIdentityResponse> getReauthenticateIdentityMethod;
    if ((getReauthenticateIdentityMethod = BrokerAdminGrpc.getReauthenticateIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getReauthenticateIdentityMethod = BrokerAdminGrpc.getReauthenticateIdentityMethod) == null) {
          BrokerAdminGrpc.getReauthenticateIdentityMethod = getReauthenticateIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.ReauthenticateIdentityRequest, dev.credentialbroker.v1.ReauthenticateIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ReauthenticateIdentity"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ReauthenticateIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ReauthenticateIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("ReauthenticateIdentity"))
              .build();
        }
      }
    }
    return getReauthenticateIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.DisableIdentityRequest,
      dev.credentialbroker.v1.DisableIdentityResponse> getDisableIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "DisableIdentity",
      requestType = dev.credentialbroker.v1.DisableIdentityRequest.class,
      responseType = dev.credentialbroker.v1.DisableIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.DisableIdentityRequest,
      dev.credentialbroker.v1.DisableIdentityResponse> getDisableIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.DisableIdentityRequest, dev.credentialbroker.v1.DisableIdentityResponse> getDisableIdentityMethod;
    if ((getDisableIdentityMethod = BrokerAdminGrpc.getDisableIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getDisableIdentityMethod = BrokerAdminGrpc.getDisableIdentityMethod) == null) {
          BrokerAdminGrpc.getDisableIdentityMethod = getDisableIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.DisableIdentityRequest, dev.credentialbroker.v1.DisableIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "DisableIdentity"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.DisableIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.DisableIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("DisableIdentity"))
              .build();
        }
      }
    }
    return getDisableIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.EnableIdentityRequest,
      dev.credentialbroker.v1.EnableIdentityResponse> getEnableIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "EnableIdentity",
      requestType = dev.credentialbroker.v1.EnableIdentityRequest.class,
      responseType = dev.credentialbroker.v1.EnableIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.EnableIdentityRequest,
      dev.credentialbroker.v1.EnableIdentityResponse> getEnableIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.EnableIdentityRequest, dev.credentialbroker.v1.EnableIdentityResponse> getEnableIdentityMethod;
    if ((getEnableIdentityMethod = BrokerAdminGrpc.getEnableIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getEnableIdentityMethod = BrokerAdminGrpc.getEnableIdentityMethod) == null) {
          BrokerAdminGrpc.getEnableIdentityMethod = getEnableIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.EnableIdentityRequest, dev.credentialbroker.v1.EnableIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "EnableIdentity"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.EnableIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.EnableIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("EnableIdentity"))
              .build();
        }
      }
    }
    return getEnableIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.DeleteIdentityRequest,
      dev.credentialbroker.v1.DeleteIdentityResponse> getDeleteIdentityMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "DeleteIdentity",
      requestType = dev.credentialbroker.v1.DeleteIdentityRequest.class,
      responseType = dev.credentialbroker.v1.DeleteIdentityResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.DeleteIdentityRequest,
      dev.credentialbroker.v1.DeleteIdentityResponse> getDeleteIdentityMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.DeleteIdentityRequest, dev.credentialbroker.v1.DeleteIdentityResponse> getDeleteIdentityMethod;
    if ((getDeleteIdentityMethod = BrokerAdminGrpc.getDeleteIdentityMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getDeleteIdentityMethod = BrokerAdminGrpc.getDeleteIdentityMethod) == null) {
          BrokerAdminGrpc.getDeleteIdentityMethod = getDeleteIdentityMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.DeleteIdentityRequest, dev.credentialbroker.v1.DeleteIdentityResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "DeleteIdentity"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.DeleteIdentityRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.DeleteIdentityResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("DeleteIdentity"))
              .build();
        }
      }
    }
    return getDeleteIdentityMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetTaskRequest,
      dev.credentialbroker.v1.GetTaskResponse> getGetTaskMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetTask",
      requestType = dev.credentialbroker.v1.GetTaskRequest.class,
      responseType = dev.credentialbroker.v1.GetTaskResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetTaskRequest,
      dev.credentialbroker.v1.GetTaskResponse> getGetTaskMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetTaskRequest, dev.credentialbroker.v1.GetTaskResponse> getGetTaskMethod;
    if ((getGetTaskMethod = BrokerAdminGrpc.getGetTaskMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getGetTaskMethod = BrokerAdminGrpc.getGetTaskMethod) == null) {
          BrokerAdminGrpc.getGetTaskMethod = getGetTaskMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.GetTaskRequest, dev.credentialbroker.v1.GetTaskResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetTask"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetTaskRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetTaskResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("GetTask"))
              .build();
        }
      }
    }
    return getGetTaskMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListTasksRequest,
      dev.credentialbroker.v1.ListTasksResponse> getListTasksMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListTasks",
      requestType = dev.credentialbroker.v1.ListTasksRequest.class,
      responseType = dev.credentialbroker.v1.ListTasksResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListTasksRequest,
      dev.credentialbroker.v1.ListTasksResponse> getListTasksMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListTasksRequest, dev.credentialbroker.v1.ListTasksResponse> getListTasksMethod;
    if ((getListTasksMethod = BrokerAdminGrpc.getListTasksMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getListTasksMethod = BrokerAdminGrpc.getListTasksMethod) == null) {
          BrokerAdminGrpc.getListTasksMethod = getListTasksMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.ListTasksRequest, dev.credentialbroker.v1.ListTasksResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListTasks"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ListTasksRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ListTasksResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("ListTasks"))
              .build();
        }
      }
    }
    return getListTasksMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.RevokeTaskRequest,
      dev.credentialbroker.v1.RevokeTaskResponse> getRevokeTaskMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "RevokeTask",
      requestType = dev.credentialbroker.v1.RevokeTaskRequest.class,
      responseType = dev.credentialbroker.v1.RevokeTaskResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.RevokeTaskRequest,
      dev.credentialbroker.v1.RevokeTaskResponse> getRevokeTaskMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.RevokeTaskRequest, dev.credentialbroker.v1.RevokeTaskResponse> getRevokeTaskMethod;
    if ((getRevokeTaskMethod = BrokerAdminGrpc.getRevokeTaskMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getRevokeTaskMethod = BrokerAdminGrpc.getRevokeTaskMethod) == null) {
          BrokerAdminGrpc.getRevokeTaskMethod = getRevokeTaskMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.RevokeTaskRequest, dev.credentialbroker.v1.RevokeTaskResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "RevokeTask"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RevokeTaskRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RevokeTaskResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("RevokeTask"))
              .build();
        }
      }
    }
    return getRevokeTaskMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetStatusRequest,
      dev.credentialbroker.v1.GetStatusResponse> getGetStatusMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetStatus",
      requestType = dev.credentialbroker.v1.GetStatusRequest.class,
      responseType = dev.credentialbroker.v1.GetStatusResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetStatusRequest,
      dev.credentialbroker.v1.GetStatusResponse> getGetStatusMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetStatusRequest, dev.credentialbroker.v1.GetStatusResponse> getGetStatusMethod;
    if ((getGetStatusMethod = BrokerAdminGrpc.getGetStatusMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getGetStatusMethod = BrokerAdminGrpc.getGetStatusMethod) == null) {
          BrokerAdminGrpc.getGetStatusMethod = getGetStatusMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.GetStatusRequest, dev.credentialbroker.v1.GetStatusResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetStatus"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetStatusRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetStatusResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("GetStatus"))
              .build();
        }
      }
    }
    return getGetStatusMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.RewrapSecretsRequest,
      dev.credentialbroker.v1.RewrapSecretsResponse> getRewrapSecretsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "RewrapSecrets",
      requestType = dev.credentialbroker.v1.RewrapSecretsRequest.class,
      responseType = dev.credentialbroker.v1.RewrapSecretsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.RewrapSecretsRequest,
      dev.credentialbroker.v1.RewrapSecretsResponse> getRewrapSecretsMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.RewrapSecretsRequest, dev.credentialbroker.v1.RewrapSecretsResponse> getRewrapSecretsMethod;
    if ((getRewrapSecretsMethod = BrokerAdminGrpc.getRewrapSecretsMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getRewrapSecretsMethod = BrokerAdminGrpc.getRewrapSecretsMethod) == null) {
          BrokerAdminGrpc.getRewrapSecretsMethod = getRewrapSecretsMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.RewrapSecretsRequest, dev.credentialbroker.v1.RewrapSecretsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "RewrapSecrets"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RewrapSecretsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RewrapSecretsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("RewrapSecrets"))
              .build();
        }
      }
    }
    return getRewrapSecretsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.VerifyAuditRequest,
      dev.credentialbroker.v1.VerifyAuditResponse> getVerifyAuditMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "VerifyAudit",
      requestType = dev.credentialbroker.v1.VerifyAuditRequest.class,
      responseType = dev.credentialbroker.v1.VerifyAuditResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.VerifyAuditRequest,
      dev.credentialbroker.v1.VerifyAuditResponse> getVerifyAuditMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.VerifyAuditRequest, dev.credentialbroker.v1.VerifyAuditResponse> getVerifyAuditMethod;
    if ((getVerifyAuditMethod = BrokerAdminGrpc.getVerifyAuditMethod) == null) {
      synchronized (BrokerAdminGrpc.class) {
        if ((getVerifyAuditMethod = BrokerAdminGrpc.getVerifyAuditMethod) == null) {
          BrokerAdminGrpc.getVerifyAuditMethod = getVerifyAuditMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.VerifyAuditRequest, dev.credentialbroker.v1.VerifyAuditResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "VerifyAudit"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.VerifyAuditRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.VerifyAuditResponse.getDefaultInstance()))
              .setSchemaDescriptor(new BrokerAdminMethodDescriptorSupplier("VerifyAudit"))
              .build();
        }
      }
    }
    return getVerifyAuditMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static BrokerAdminStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<BrokerAdminStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<BrokerAdminStub>() {
        @java.lang.Override
        public BrokerAdminStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new BrokerAdminStub(channel, callOptions);
        }
      };
    return BrokerAdminStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports all types of calls on the service
   */
  public static BrokerAdminBlockingV2Stub newBlockingV2Stub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<BrokerAdminBlockingV2Stub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<BrokerAdminBlockingV2Stub>() {
        @java.lang.Override
        public BrokerAdminBlockingV2Stub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new BrokerAdminBlockingV2Stub(channel, callOptions);
        }
      };
    return BrokerAdminBlockingV2Stub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static BrokerAdminBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<BrokerAdminBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<BrokerAdminBlockingStub>() {
        @java.lang.Override
        public BrokerAdminBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new BrokerAdminBlockingStub(channel, callOptions);
        }
      };
    return BrokerAdminBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static BrokerAdminFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<BrokerAdminFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<BrokerAdminFutureStub>() {
        @java.lang.Override
        public BrokerAdminFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new BrokerAdminFutureStub(channel, callOptions);
        }
      };
    return BrokerAdminFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Keeps identities and tasks. For operators, on a listener of its own.
   * Backends, scopes and named bearer sources live in the configuration only, and no RPC can set a command, a path or a
   * URL. Identities live in the store only. Secrets go in and never come out: they are sealed when they arrive, and no
   * answer carries a private key, a token or a backend's task id.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - Who: a principal that the configuration names as an operator.
   *   - The broker sets a deadline of 60 s where the call has none or a longer one.
   *   - `request_id`: 1 to 64 printable ASCII characters, made anew for each intention and kept for its retries. It is
   *     remembered for 24 hours: the same content gets the same answer, other content REQUEST_ID_REUSED.
   *   - `etag`: if set, the change is made only if the resource still has it, else ABORTED GENERATION_CHANGED. Unset means
   *     that the change is made to whatever is there.
   *   - `comment`: why it is done, for the audit record, at most 256 bytes. May be unset.
   *   - Every call, refused ones included, leaves an audit record.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, FIELD_INVALID, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Makes an identity. In mode AGENT the broker makes its key and registers it at the backend; the intent is stored
     * before the backend is called, so that a create that is cut off goes on by itself.
     * Idempotency: by `request_id`. Repeating one that was cut off waits for the same registration and never starts a
     * second one.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, BEARER_UNAVAILABLE (the registration needs one), IDENTITY_REJECTED (the
     * backend refused the registration), CLOCK_SKEW, BACKEND_UNSUPPORTED, REGISTRATION_IN_PROGRESS (not done within the
     * deadline; the identity is kept in state REGISTERING and the broker goes on), BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    default void createIdentity(dev.credentialbroker.v1.CreateIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.CreateIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCreateIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Takes over an identity that exists elsewhere: a Codex `auth.json`, an Agent Identity JWT (verified against the
     * backend's published keys before any of its claims is used), or a bare key. A record whose key does not parse or
     * whose account or user does not match is refused, never kept.
     * Idempotency: by `request_id`.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what is imported has
     * expired), BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    default void importIdentity(dev.credentialbroker.v1.ImportIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ImportIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getImportIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Returns one identity.
     * Errors: IDENTITY_NOT_FOUND.
     * </pre>
     */
    default void getIdentity(dev.credentialbroker.v1.GetIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists identities, ordered by name.
     * Errors: PAGE_TOKEN_INVALID.
     * </pre>
     */
    default void listIdentities(dev.credentialbroker.v1.ListIdentitiesRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListIdentitiesResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListIdentitiesMethod(), responseObserver);
    }

    /**
     * <pre>
     * Changes settings of an identity. Its mode, backend, account, user and key cannot be changed this way.
     * Idempotency: repeating sets the same values again; with an etag the repeat is GENERATION_CHANGED.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    default void updateIdentity(dev.credentialbroker.v1.UpdateIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.UpdateIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getUpdateIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Gives an identity of mode AGENT a new key and registers it. The old key serves until the new one is registered; then
     * the generation is bumped, tasks are registered anew on their next use, and watchers get a withdrawal.
     * Idempotency: by `request_id`. Repeating one that was cut off goes on with the same new key.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, ROTATION_UNSUPPORTED, BEARER_UNAVAILABLE, REAUTH_REQUIRED,
     * IDENTITY_REJECTED, IDENTITY_REVOKED (it is disabled), GENERATION_CHANGED, CLOCK_SKEW, REGISTRATION_IN_PROGRESS,
     * BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    default void rotateIdentityKey(dev.credentialbroker.v1.RotateIdentityKeyRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RotateIdentityKeyResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRotateIdentityKeyMethod(), responseObserver);
    }

    /**
     * <pre>
     * Gives an identity a new login: a new bearer, or a new record or JWT of the same account and user. Ends
     * REAUTH_REQUIRED and REJECTED where the new login allows it. The generation is bumped only if the key or the runtime
     * id changes.
     * Idempotency: by `request_id`.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what was given has
     * expired or was refused), GENERATION_CHANGED, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    default void reauthenticateIdentity(dev.credentialbroker.v1.ReauthenticateIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ReauthenticateIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getReauthenticateIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Stops an identity: callers get IDENTITY_REVOKED, watchers a withdrawal within a second, and callers without a watch
     * stop by the `expire_time` they hold. The generation is bumped, so that nothing made before is valid after enabling.
     * Idempotency: a disabled identity is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    default void disableIdentity(dev.credentialbroker.v1.DisableIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.DisableIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getDisableIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lets a disabled identity serve again, in the state that it would have had. Other states are not changed.
     * Idempotency: an identity that is not disabled is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    default void enableIdentity(dev.credentialbroker.v1.EnableIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.EnableIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getEnableIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Deletes an identity: its private key and tokens are erased, its tasks are revoked, callers get IDENTITY_REVOKED. A
     * record without secrets is kept for the audit; the name may be used again. The backend knows no such call: what was
     * registered there stays there, without its key.
     * Idempotency: a deleted identity is returned as it is, unless the name is in use again.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    default void deleteIdentity(dev.credentialbroker.v1.DeleteIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.DeleteIdentityResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getDeleteIdentityMethod(), responseObserver);
    }

    /**
     * <pre>
     * Returns one task.
     * Errors: TASK_NOT_FOUND.
     * </pre>
     */
    default void getTask(dev.credentialbroker.v1.GetTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetTaskResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetTaskMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists tasks, ordered by identity and then by the time they were made.
     * Errors: IDENTITY_NOT_FOUND, PAGE_TOKEN_INVALID.
     * </pre>
     */
    default void listTasks(dev.credentialbroker.v1.ListTasksRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListTasksResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListTasksMethod(), responseObserver);
    }

    /**
     * <pre>
     * Takes a task down: nothing is signed for it any more, callers get TASK_ENDED, watchers a withdrawal. A task at the
     * backend that is shared by other bindings is taken down with all of them, which needs `force`.
     * Idempotency: a task that is revoked is returned as it is.
     * Errors: TASK_NOT_FOUND, TASK_SHARED, GENERATION_CHANGED.
     * </pre>
     */
    default void revokeTask(dev.credentialbroker.v1.RevokeTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RevokeTaskResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRevokeTaskMethod(), responseObserver);
    }

    /**
     * <pre>
     * Says how the broker that answers is doing. It answers also while its store is away.
     * Errors: none but those named at the service; STORE_DOWN is not among them.
     * </pre>
     */
    default void getStatus(dev.credentialbroker.v1.GetStatusRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetStatusResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetStatusMethod(), responseObserver);
    }

    /**
     * <pre>
     * Seals stored secrets anew under the current key, a bounded number a call. Call it until `remaining_count` is 0; only
     * then may an old key be removed.
     * Idempotency: safe to repeat and to run on several replicas; what is sealed under the current key is left alone.
     * Errors: KEY_PROVIDER_DOWN.
     * </pre>
     */
    default void rewrapSecrets(dev.credentialbroker.v1.RewrapSecretsRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RewrapSecretsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRewrapSecretsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Checks that audit records were neither altered, removed nor reordered, a bounded number a call.
     * Errors: FIELD_INVALID (`position`), AUDIT_DOWN (the records cannot be read).
     * </pre>
     */
    default void verifyAudit(dev.credentialbroker.v1.VerifyAuditRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.VerifyAuditResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getVerifyAuditMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service BrokerAdmin.
   * <pre>
   * Keeps identities and tasks. For operators, on a listener of its own.
   * Backends, scopes and named bearer sources live in the configuration only, and no RPC can set a command, a path or a
   * URL. Identities live in the store only. Secrets go in and never come out: they are sealed when they arrive, and no
   * answer carries a private key, a token or a backend's task id.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - Who: a principal that the configuration names as an operator.
   *   - The broker sets a deadline of 60 s where the call has none or a longer one.
   *   - `request_id`: 1 to 64 printable ASCII characters, made anew for each intention and kept for its retries. It is
   *     remembered for 24 hours: the same content gets the same answer, other content REQUEST_ID_REUSED.
   *   - `etag`: if set, the change is made only if the resource still has it, else ABORTED GENERATION_CHANGED. Unset means
   *     that the change is made to whatever is there.
   *   - `comment`: why it is done, for the audit record, at most 256 bytes. May be unset.
   *   - Every call, refused ones included, leaves an audit record.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, FIELD_INVALID, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static abstract class BrokerAdminImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return BrokerAdminGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service BrokerAdmin.
   * <pre>
   * Keeps identities and tasks. For operators, on a listener of its own.
   * Backends, scopes and named bearer sources live in the configuration only, and no RPC can set a command, a path or a
   * URL. Identities live in the store only. Secrets go in and never come out: they are sealed when they arrive, and no
   * answer carries a private key, a token or a backend's task id.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - Who: a principal that the configuration names as an operator.
   *   - The broker sets a deadline of 60 s where the call has none or a longer one.
   *   - `request_id`: 1 to 64 printable ASCII characters, made anew for each intention and kept for its retries. It is
   *     remembered for 24 hours: the same content gets the same answer, other content REQUEST_ID_REUSED.
   *   - `etag`: if set, the change is made only if the resource still has it, else ABORTED GENERATION_CHANGED. Unset means
   *     that the change is made to whatever is there.
   *   - `comment`: why it is done, for the audit record, at most 256 bytes. May be unset.
   *   - Every call, refused ones included, leaves an audit record.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, FIELD_INVALID, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class BrokerAdminStub
      extends io.grpc.stub.AbstractAsyncStub<BrokerAdminStub> {
    private BrokerAdminStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected BrokerAdminStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new BrokerAdminStub(channel, callOptions);
    }

    /**
     * <pre>
     * Makes an identity. In mode AGENT the broker makes its key and registers it at the backend; the intent is stored
     * before the backend is called, so that a create that is cut off goes on by itself.
     * Idempotency: by `request_id`. Repeating one that was cut off waits for the same registration and never starts a
     * second one.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, BEARER_UNAVAILABLE (the registration needs one), IDENTITY_REJECTED (the
     * backend refused the registration), CLOCK_SKEW, BACKEND_UNSUPPORTED, REGISTRATION_IN_PROGRESS (not done within the
     * deadline; the identity is kept in state REGISTERING and the broker goes on), BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public void createIdentity(dev.credentialbroker.v1.CreateIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.CreateIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCreateIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Takes over an identity that exists elsewhere: a Codex `auth.json`, an Agent Identity JWT (verified against the
     * backend's published keys before any of its claims is used), or a bare key. A record whose key does not parse or
     * whose account or user does not match is refused, never kept.
     * Idempotency: by `request_id`.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what is imported has
     * expired), BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public void importIdentity(dev.credentialbroker.v1.ImportIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ImportIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getImportIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Returns one identity.
     * Errors: IDENTITY_NOT_FOUND.
     * </pre>
     */
    public void getIdentity(dev.credentialbroker.v1.GetIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Lists identities, ordered by name.
     * Errors: PAGE_TOKEN_INVALID.
     * </pre>
     */
    public void listIdentities(dev.credentialbroker.v1.ListIdentitiesRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListIdentitiesResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListIdentitiesMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Changes settings of an identity. Its mode, backend, account, user and key cannot be changed this way.
     * Idempotency: repeating sets the same values again; with an etag the repeat is GENERATION_CHANGED.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public void updateIdentity(dev.credentialbroker.v1.UpdateIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.UpdateIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getUpdateIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Gives an identity of mode AGENT a new key and registers it. The old key serves until the new one is registered; then
     * the generation is bumped, tasks are registered anew on their next use, and watchers get a withdrawal.
     * Idempotency: by `request_id`. Repeating one that was cut off goes on with the same new key.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, ROTATION_UNSUPPORTED, BEARER_UNAVAILABLE, REAUTH_REQUIRED,
     * IDENTITY_REJECTED, IDENTITY_REVOKED (it is disabled), GENERATION_CHANGED, CLOCK_SKEW, REGISTRATION_IN_PROGRESS,
     * BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public void rotateIdentityKey(dev.credentialbroker.v1.RotateIdentityKeyRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RotateIdentityKeyResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRotateIdentityKeyMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Gives an identity a new login: a new bearer, or a new record or JWT of the same account and user. Ends
     * REAUTH_REQUIRED and REJECTED where the new login allows it. The generation is bumped only if the key or the runtime
     * id changes.
     * Idempotency: by `request_id`.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what was given has
     * expired or was refused), GENERATION_CHANGED, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public void reauthenticateIdentity(dev.credentialbroker.v1.ReauthenticateIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ReauthenticateIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getReauthenticateIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Stops an identity: callers get IDENTITY_REVOKED, watchers a withdrawal within a second, and callers without a watch
     * stop by the `expire_time` they hold. The generation is bumped, so that nothing made before is valid after enabling.
     * Idempotency: a disabled identity is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public void disableIdentity(dev.credentialbroker.v1.DisableIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.DisableIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getDisableIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Lets a disabled identity serve again, in the state that it would have had. Other states are not changed.
     * Idempotency: an identity that is not disabled is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public void enableIdentity(dev.credentialbroker.v1.EnableIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.EnableIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getEnableIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Deletes an identity: its private key and tokens are erased, its tasks are revoked, callers get IDENTITY_REVOKED. A
     * record without secrets is kept for the audit; the name may be used again. The backend knows no such call: what was
     * registered there stays there, without its key.
     * Idempotency: a deleted identity is returned as it is, unless the name is in use again.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public void deleteIdentity(dev.credentialbroker.v1.DeleteIdentityRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.DeleteIdentityResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getDeleteIdentityMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Returns one task.
     * Errors: TASK_NOT_FOUND.
     * </pre>
     */
    public void getTask(dev.credentialbroker.v1.GetTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetTaskResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetTaskMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Lists tasks, ordered by identity and then by the time they were made.
     * Errors: IDENTITY_NOT_FOUND, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public void listTasks(dev.credentialbroker.v1.ListTasksRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListTasksResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListTasksMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Takes a task down: nothing is signed for it any more, callers get TASK_ENDED, watchers a withdrawal. A task at the
     * backend that is shared by other bindings is taken down with all of them, which needs `force`.
     * Idempotency: a task that is revoked is returned as it is.
     * Errors: TASK_NOT_FOUND, TASK_SHARED, GENERATION_CHANGED.
     * </pre>
     */
    public void revokeTask(dev.credentialbroker.v1.RevokeTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RevokeTaskResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRevokeTaskMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Says how the broker that answers is doing. It answers also while its store is away.
     * Errors: none but those named at the service; STORE_DOWN is not among them.
     * </pre>
     */
    public void getStatus(dev.credentialbroker.v1.GetStatusRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetStatusResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetStatusMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Seals stored secrets anew under the current key, a bounded number a call. Call it until `remaining_count` is 0; only
     * then may an old key be removed.
     * Idempotency: safe to repeat and to run on several replicas; what is sealed under the current key is left alone.
     * Errors: KEY_PROVIDER_DOWN.
     * </pre>
     */
    public void rewrapSecrets(dev.credentialbroker.v1.RewrapSecretsRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RewrapSecretsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRewrapSecretsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Checks that audit records were neither altered, removed nor reordered, a bounded number a call.
     * Errors: FIELD_INVALID (`position`), AUDIT_DOWN (the records cannot be read).
     * </pre>
     */
    public void verifyAudit(dev.credentialbroker.v1.VerifyAuditRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.VerifyAuditResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getVerifyAuditMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service BrokerAdmin.
   * <pre>
   * Keeps identities and tasks. For operators, on a listener of its own.
   * Backends, scopes and named bearer sources live in the configuration only, and no RPC can set a command, a path or a
   * URL. Identities live in the store only. Secrets go in and never come out: they are sealed when they arrive, and no
   * answer carries a private key, a token or a backend's task id.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - Who: a principal that the configuration names as an operator.
   *   - The broker sets a deadline of 60 s where the call has none or a longer one.
   *   - `request_id`: 1 to 64 printable ASCII characters, made anew for each intention and kept for its retries. It is
   *     remembered for 24 hours: the same content gets the same answer, other content REQUEST_ID_REUSED.
   *   - `etag`: if set, the change is made only if the resource still has it, else ABORTED GENERATION_CHANGED. Unset means
   *     that the change is made to whatever is there.
   *   - `comment`: why it is done, for the audit record, at most 256 bytes. May be unset.
   *   - Every call, refused ones included, leaves an audit record.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, FIELD_INVALID, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class BrokerAdminBlockingV2Stub
      extends io.grpc.stub.AbstractBlockingStub<BrokerAdminBlockingV2Stub> {
    private BrokerAdminBlockingV2Stub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected BrokerAdminBlockingV2Stub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new BrokerAdminBlockingV2Stub(channel, callOptions);
    }

    /**
     * <pre>
     * Makes an identity. In mode AGENT the broker makes its key and registers it at the backend; the intent is stored
     * before the backend is called, so that a create that is cut off goes on by itself.
     * Idempotency: by `request_id`. Repeating one that was cut off waits for the same registration and never starts a
     * second one.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, BEARER_UNAVAILABLE (the registration needs one), IDENTITY_REJECTED (the
     * backend refused the registration), CLOCK_SKEW, BACKEND_UNSUPPORTED, REGISTRATION_IN_PROGRESS (not done within the
     * deadline; the identity is kept in state REGISTERING and the broker goes on), BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.CreateIdentityResponse createIdentity(dev.credentialbroker.v1.CreateIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getCreateIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Takes over an identity that exists elsewhere: a Codex `auth.json`, an Agent Identity JWT (verified against the
     * backend's published keys before any of its claims is used), or a bare key. A record whose key does not parse or
     * whose account or user does not match is refused, never kept.
     * Idempotency: by `request_id`.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what is imported has
     * expired), BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.ImportIdentityResponse importIdentity(dev.credentialbroker.v1.ImportIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getImportIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Returns one identity.
     * Errors: IDENTITY_NOT_FOUND.
     * </pre>
     */
    public dev.credentialbroker.v1.GetIdentityResponse getIdentity(dev.credentialbroker.v1.GetIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists identities, ordered by name.
     * Errors: PAGE_TOKEN_INVALID.
     * </pre>
     */
    public dev.credentialbroker.v1.ListIdentitiesResponse listIdentities(dev.credentialbroker.v1.ListIdentitiesRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getListIdentitiesMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Changes settings of an identity. Its mode, backend, account, user and key cannot be changed this way.
     * Idempotency: repeating sets the same values again; with an etag the repeat is GENERATION_CHANGED.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.UpdateIdentityResponse updateIdentity(dev.credentialbroker.v1.UpdateIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getUpdateIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Gives an identity of mode AGENT a new key and registers it. The old key serves until the new one is registered; then
     * the generation is bumped, tasks are registered anew on their next use, and watchers get a withdrawal.
     * Idempotency: by `request_id`. Repeating one that was cut off goes on with the same new key.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, ROTATION_UNSUPPORTED, BEARER_UNAVAILABLE, REAUTH_REQUIRED,
     * IDENTITY_REJECTED, IDENTITY_REVOKED (it is disabled), GENERATION_CHANGED, CLOCK_SKEW, REGISTRATION_IN_PROGRESS,
     * BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.RotateIdentityKeyResponse rotateIdentityKey(dev.credentialbroker.v1.RotateIdentityKeyRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getRotateIdentityKeyMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Gives an identity a new login: a new bearer, or a new record or JWT of the same account and user. Ends
     * REAUTH_REQUIRED and REJECTED where the new login allows it. The generation is bumped only if the key or the runtime
     * id changes.
     * Idempotency: by `request_id`.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what was given has
     * expired or was refused), GENERATION_CHANGED, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.ReauthenticateIdentityResponse reauthenticateIdentity(dev.credentialbroker.v1.ReauthenticateIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getReauthenticateIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Stops an identity: callers get IDENTITY_REVOKED, watchers a withdrawal within a second, and callers without a watch
     * stop by the `expire_time` they hold. The generation is bumped, so that nothing made before is valid after enabling.
     * Idempotency: a disabled identity is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.DisableIdentityResponse disableIdentity(dev.credentialbroker.v1.DisableIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getDisableIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lets a disabled identity serve again, in the state that it would have had. Other states are not changed.
     * Idempotency: an identity that is not disabled is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.EnableIdentityResponse enableIdentity(dev.credentialbroker.v1.EnableIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getEnableIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Deletes an identity: its private key and tokens are erased, its tasks are revoked, callers get IDENTITY_REVOKED. A
     * record without secrets is kept for the audit; the name may be used again. The backend knows no such call: what was
     * registered there stays there, without its key.
     * Idempotency: a deleted identity is returned as it is, unless the name is in use again.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.DeleteIdentityResponse deleteIdentity(dev.credentialbroker.v1.DeleteIdentityRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getDeleteIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Returns one task.
     * Errors: TASK_NOT_FOUND.
     * </pre>
     */
    public dev.credentialbroker.v1.GetTaskResponse getTask(dev.credentialbroker.v1.GetTaskRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists tasks, ordered by identity and then by the time they were made.
     * Errors: IDENTITY_NOT_FOUND, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public dev.credentialbroker.v1.ListTasksResponse listTasks(dev.credentialbroker.v1.ListTasksRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getListTasksMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Takes a task down: nothing is signed for it any more, callers get TASK_ENDED, watchers a withdrawal. A task at the
     * backend that is shared by other bindings is taken down with all of them, which needs `force`.
     * Idempotency: a task that is revoked is returned as it is.
     * Errors: TASK_NOT_FOUND, TASK_SHARED, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.RevokeTaskResponse revokeTask(dev.credentialbroker.v1.RevokeTaskRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getRevokeTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Says how the broker that answers is doing. It answers also while its store is away.
     * Errors: none but those named at the service; STORE_DOWN is not among them.
     * </pre>
     */
    public dev.credentialbroker.v1.GetStatusResponse getStatus(dev.credentialbroker.v1.GetStatusRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetStatusMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Seals stored secrets anew under the current key, a bounded number a call. Call it until `remaining_count` is 0; only
     * then may an old key be removed.
     * Idempotency: safe to repeat and to run on several replicas; what is sealed under the current key is left alone.
     * Errors: KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.RewrapSecretsResponse rewrapSecrets(dev.credentialbroker.v1.RewrapSecretsRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getRewrapSecretsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Checks that audit records were neither altered, removed nor reordered, a bounded number a call.
     * Errors: FIELD_INVALID (`position`), AUDIT_DOWN (the records cannot be read).
     * </pre>
     */
    public dev.credentialbroker.v1.VerifyAuditResponse verifyAudit(dev.credentialbroker.v1.VerifyAuditRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getVerifyAuditMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do limited synchronous rpc calls to service BrokerAdmin.
   * <pre>
   * Keeps identities and tasks. For operators, on a listener of its own.
   * Backends, scopes and named bearer sources live in the configuration only, and no RPC can set a command, a path or a
   * URL. Identities live in the store only. Secrets go in and never come out: they are sealed when they arrive, and no
   * answer carries a private key, a token or a backend's task id.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - Who: a principal that the configuration names as an operator.
   *   - The broker sets a deadline of 60 s where the call has none or a longer one.
   *   - `request_id`: 1 to 64 printable ASCII characters, made anew for each intention and kept for its retries. It is
   *     remembered for 24 hours: the same content gets the same answer, other content REQUEST_ID_REUSED.
   *   - `etag`: if set, the change is made only if the resource still has it, else ABORTED GENERATION_CHANGED. Unset means
   *     that the change is made to whatever is there.
   *   - `comment`: why it is done, for the audit record, at most 256 bytes. May be unset.
   *   - Every call, refused ones included, leaves an audit record.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, FIELD_INVALID, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class BrokerAdminBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<BrokerAdminBlockingStub> {
    private BrokerAdminBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected BrokerAdminBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new BrokerAdminBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Makes an identity. In mode AGENT the broker makes its key and registers it at the backend; the intent is stored
     * before the backend is called, so that a create that is cut off goes on by itself.
     * Idempotency: by `request_id`. Repeating one that was cut off waits for the same registration and never starts a
     * second one.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, BEARER_UNAVAILABLE (the registration needs one), IDENTITY_REJECTED (the
     * backend refused the registration), CLOCK_SKEW, BACKEND_UNSUPPORTED, REGISTRATION_IN_PROGRESS (not done within the
     * deadline; the identity is kept in state REGISTERING and the broker goes on), BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.CreateIdentityResponse createIdentity(dev.credentialbroker.v1.CreateIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCreateIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Takes over an identity that exists elsewhere: a Codex `auth.json`, an Agent Identity JWT (verified against the
     * backend's published keys before any of its claims is used), or a bare key. A record whose key does not parse or
     * whose account or user does not match is refused, never kept.
     * Idempotency: by `request_id`.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what is imported has
     * expired), BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.ImportIdentityResponse importIdentity(dev.credentialbroker.v1.ImportIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getImportIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Returns one identity.
     * Errors: IDENTITY_NOT_FOUND.
     * </pre>
     */
    public dev.credentialbroker.v1.GetIdentityResponse getIdentity(dev.credentialbroker.v1.GetIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists identities, ordered by name.
     * Errors: PAGE_TOKEN_INVALID.
     * </pre>
     */
    public dev.credentialbroker.v1.ListIdentitiesResponse listIdentities(dev.credentialbroker.v1.ListIdentitiesRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListIdentitiesMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Changes settings of an identity. Its mode, backend, account, user and key cannot be changed this way.
     * Idempotency: repeating sets the same values again; with an etag the repeat is GENERATION_CHANGED.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.UpdateIdentityResponse updateIdentity(dev.credentialbroker.v1.UpdateIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getUpdateIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Gives an identity of mode AGENT a new key and registers it. The old key serves until the new one is registered; then
     * the generation is bumped, tasks are registered anew on their next use, and watchers get a withdrawal.
     * Idempotency: by `request_id`. Repeating one that was cut off goes on with the same new key.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, ROTATION_UNSUPPORTED, BEARER_UNAVAILABLE, REAUTH_REQUIRED,
     * IDENTITY_REJECTED, IDENTITY_REVOKED (it is disabled), GENERATION_CHANGED, CLOCK_SKEW, REGISTRATION_IN_PROGRESS,
     * BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.RotateIdentityKeyResponse rotateIdentityKey(dev.credentialbroker.v1.RotateIdentityKeyRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRotateIdentityKeyMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Gives an identity a new login: a new bearer, or a new record or JWT of the same account and user. Ends
     * REAUTH_REQUIRED and REJECTED where the new login allows it. The generation is bumped only if the key or the runtime
     * id changes.
     * Idempotency: by `request_id`.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what was given has
     * expired or was refused), GENERATION_CHANGED, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.ReauthenticateIdentityResponse reauthenticateIdentity(dev.credentialbroker.v1.ReauthenticateIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getReauthenticateIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Stops an identity: callers get IDENTITY_REVOKED, watchers a withdrawal within a second, and callers without a watch
     * stop by the `expire_time` they hold. The generation is bumped, so that nothing made before is valid after enabling.
     * Idempotency: a disabled identity is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.DisableIdentityResponse disableIdentity(dev.credentialbroker.v1.DisableIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getDisableIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lets a disabled identity serve again, in the state that it would have had. Other states are not changed.
     * Idempotency: an identity that is not disabled is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.EnableIdentityResponse enableIdentity(dev.credentialbroker.v1.EnableIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getEnableIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Deletes an identity: its private key and tokens are erased, its tasks are revoked, callers get IDENTITY_REVOKED. A
     * record without secrets is kept for the audit; the name may be used again. The backend knows no such call: what was
     * registered there stays there, without its key.
     * Idempotency: a deleted identity is returned as it is, unless the name is in use again.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.DeleteIdentityResponse deleteIdentity(dev.credentialbroker.v1.DeleteIdentityRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getDeleteIdentityMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Returns one task.
     * Errors: TASK_NOT_FOUND.
     * </pre>
     */
    public dev.credentialbroker.v1.GetTaskResponse getTask(dev.credentialbroker.v1.GetTaskRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists tasks, ordered by identity and then by the time they were made.
     * Errors: IDENTITY_NOT_FOUND, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public dev.credentialbroker.v1.ListTasksResponse listTasks(dev.credentialbroker.v1.ListTasksRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListTasksMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Takes a task down: nothing is signed for it any more, callers get TASK_ENDED, watchers a withdrawal. A task at the
     * backend that is shared by other bindings is taken down with all of them, which needs `force`.
     * Idempotency: a task that is revoked is returned as it is.
     * Errors: TASK_NOT_FOUND, TASK_SHARED, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.RevokeTaskResponse revokeTask(dev.credentialbroker.v1.RevokeTaskRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRevokeTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Says how the broker that answers is doing. It answers also while its store is away.
     * Errors: none but those named at the service; STORE_DOWN is not among them.
     * </pre>
     */
    public dev.credentialbroker.v1.GetStatusResponse getStatus(dev.credentialbroker.v1.GetStatusRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetStatusMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Seals stored secrets anew under the current key, a bounded number a call. Call it until `remaining_count` is 0; only
     * then may an old key be removed.
     * Idempotency: safe to repeat and to run on several replicas; what is sealed under the current key is left alone.
     * Errors: KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.RewrapSecretsResponse rewrapSecrets(dev.credentialbroker.v1.RewrapSecretsRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRewrapSecretsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Checks that audit records were neither altered, removed nor reordered, a bounded number a call.
     * Errors: FIELD_INVALID (`position`), AUDIT_DOWN (the records cannot be read).
     * </pre>
     */
    public dev.credentialbroker.v1.VerifyAuditResponse verifyAudit(dev.credentialbroker.v1.VerifyAuditRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getVerifyAuditMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service BrokerAdmin.
   * <pre>
   * Keeps identities and tasks. For operators, on a listener of its own.
   * Backends, scopes and named bearer sources live in the configuration only, and no RPC can set a command, a path or a
   * URL. Identities live in the store only. Secrets go in and never come out: they are sealed when they arrive, and no
   * answer carries a private key, a token or a backend's task id.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - Who: a principal that the configuration names as an operator.
   *   - The broker sets a deadline of 60 s where the call has none or a longer one.
   *   - `request_id`: 1 to 64 printable ASCII characters, made anew for each intention and kept for its retries. It is
   *     remembered for 24 hours: the same content gets the same answer, other content REQUEST_ID_REUSED.
   *   - `etag`: if set, the change is made only if the resource still has it, else ABORTED GENERATION_CHANGED. Unset means
   *     that the change is made to whatever is there.
   *   - `comment`: why it is done, for the audit record, at most 256 bytes. May be unset.
   *   - Every call, refused ones included, leaves an audit record.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, FIELD_INVALID, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class BrokerAdminFutureStub
      extends io.grpc.stub.AbstractFutureStub<BrokerAdminFutureStub> {
    private BrokerAdminFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected BrokerAdminFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new BrokerAdminFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Makes an identity. In mode AGENT the broker makes its key and registers it at the backend; the intent is stored
     * before the backend is called, so that a create that is cut off goes on by itself.
     * Idempotency: by `request_id`. Repeating one that was cut off waits for the same registration and never starts a
     * second one.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, BEARER_UNAVAILABLE (the registration needs one), IDENTITY_REJECTED (the
     * backend refused the registration), CLOCK_SKEW, BACKEND_UNSUPPORTED, REGISTRATION_IN_PROGRESS (not done within the
     * deadline; the identity is kept in state REGISTERING and the broker goes on), BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.CreateIdentityResponse> createIdentity(
        dev.credentialbroker.v1.CreateIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCreateIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Takes over an identity that exists elsewhere: a Codex `auth.json`, an Agent Identity JWT (verified against the
     * backend's published keys before any of its claims is used), or a bare key. A record whose key does not parse or
     * whose account or user does not match is refused, never kept.
     * Idempotency: by `request_id`.
     * Errors: REQUEST_ID_REUSED, IDENTITY_EXISTS, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what is imported has
     * expired), BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.ImportIdentityResponse> importIdentity(
        dev.credentialbroker.v1.ImportIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getImportIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Returns one identity.
     * Errors: IDENTITY_NOT_FOUND.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.GetIdentityResponse> getIdentity(
        dev.credentialbroker.v1.GetIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Lists identities, ordered by name.
     * Errors: PAGE_TOKEN_INVALID.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.ListIdentitiesResponse> listIdentities(
        dev.credentialbroker.v1.ListIdentitiesRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListIdentitiesMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Changes settings of an identity. Its mode, backend, account, user and key cannot be changed this way.
     * Idempotency: repeating sets the same values again; with an etag the repeat is GENERATION_CHANGED.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.UpdateIdentityResponse> updateIdentity(
        dev.credentialbroker.v1.UpdateIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getUpdateIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Gives an identity of mode AGENT a new key and registers it. The old key serves until the new one is registered; then
     * the generation is bumped, tasks are registered anew on their next use, and watchers get a withdrawal.
     * Idempotency: by `request_id`. Repeating one that was cut off goes on with the same new key.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, ROTATION_UNSUPPORTED, BEARER_UNAVAILABLE, REAUTH_REQUIRED,
     * IDENTITY_REJECTED, IDENTITY_REVOKED (it is disabled), GENERATION_CHANGED, CLOCK_SKEW, REGISTRATION_IN_PROGRESS,
     * BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.RotateIdentityKeyResponse> rotateIdentityKey(
        dev.credentialbroker.v1.RotateIdentityKeyRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRotateIdentityKeyMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Gives an identity a new login: a new bearer, or a new record or JWT of the same account and user. Ends
     * REAUTH_REQUIRED and REJECTED where the new login allows it. The generation is bumped only if the key or the runtime
     * id changes.
     * Idempotency: by `request_id`.
     * Errors: IDENTITY_NOT_FOUND, REQUEST_ID_REUSED, IMPORT_INVALID, ACCOUNT_MISMATCH, REAUTH_REQUIRED (what was given has
     * expired or was refused), GENERATION_CHANGED, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.ReauthenticateIdentityResponse> reauthenticateIdentity(
        dev.credentialbroker.v1.ReauthenticateIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getReauthenticateIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Stops an identity: callers get IDENTITY_REVOKED, watchers a withdrawal within a second, and callers without a watch
     * stop by the `expire_time` they hold. The generation is bumped, so that nothing made before is valid after enabling.
     * Idempotency: a disabled identity is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.DisableIdentityResponse> disableIdentity(
        dev.credentialbroker.v1.DisableIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getDisableIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Lets a disabled identity serve again, in the state that it would have had. Other states are not changed.
     * Idempotency: an identity that is not disabled is returned as it is.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.EnableIdentityResponse> enableIdentity(
        dev.credentialbroker.v1.EnableIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getEnableIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Deletes an identity: its private key and tokens are erased, its tasks are revoked, callers get IDENTITY_REVOKED. A
     * record without secrets is kept for the audit; the name may be used again. The backend knows no such call: what was
     * registered there stays there, without its key.
     * Idempotency: a deleted identity is returned as it is, unless the name is in use again.
     * Errors: IDENTITY_NOT_FOUND, GENERATION_CHANGED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.DeleteIdentityResponse> deleteIdentity(
        dev.credentialbroker.v1.DeleteIdentityRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getDeleteIdentityMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Returns one task.
     * Errors: TASK_NOT_FOUND.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.GetTaskResponse> getTask(
        dev.credentialbroker.v1.GetTaskRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetTaskMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Lists tasks, ordered by identity and then by the time they were made.
     * Errors: IDENTITY_NOT_FOUND, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.ListTasksResponse> listTasks(
        dev.credentialbroker.v1.ListTasksRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListTasksMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Takes a task down: nothing is signed for it any more, callers get TASK_ENDED, watchers a withdrawal. A task at the
     * backend that is shared by other bindings is taken down with all of them, which needs `force`.
     * Idempotency: a task that is revoked is returned as it is.
     * Errors: TASK_NOT_FOUND, TASK_SHARED, GENERATION_CHANGED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.RevokeTaskResponse> revokeTask(
        dev.credentialbroker.v1.RevokeTaskRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRevokeTaskMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Says how the broker that answers is doing. It answers also while its store is away.
     * Errors: none but those named at the service; STORE_DOWN is not among them.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.GetStatusResponse> getStatus(
        dev.credentialbroker.v1.GetStatusRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetStatusMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Seals stored secrets anew under the current key, a bounded number a call. Call it until `remaining_count` is 0; only
     * then may an old key be removed.
     * Idempotency: safe to repeat and to run on several replicas; what is sealed under the current key is left alone.
     * Errors: KEY_PROVIDER_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.RewrapSecretsResponse> rewrapSecrets(
        dev.credentialbroker.v1.RewrapSecretsRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRewrapSecretsMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Checks that audit records were neither altered, removed nor reordered, a bounded number a call.
     * Errors: FIELD_INVALID (`position`), AUDIT_DOWN (the records cannot be read).
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.VerifyAuditResponse> verifyAudit(
        dev.credentialbroker.v1.VerifyAuditRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getVerifyAuditMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_CREATE_IDENTITY = 0;
  private static final int METHODID_IMPORT_IDENTITY = 1;
  private static final int METHODID_GET_IDENTITY = 2;
  private static final int METHODID_LIST_IDENTITIES = 3;
  private static final int METHODID_UPDATE_IDENTITY = 4;
  private static final int METHODID_ROTATE_IDENTITY_KEY = 5;
  private static final int METHODID_REAUTHENTICATE_IDENTITY = 6;
  private static final int METHODID_DISABLE_IDENTITY = 7;
  private static final int METHODID_ENABLE_IDENTITY = 8;
  private static final int METHODID_DELETE_IDENTITY = 9;
  private static final int METHODID_GET_TASK = 10;
  private static final int METHODID_LIST_TASKS = 11;
  private static final int METHODID_REVOKE_TASK = 12;
  private static final int METHODID_GET_STATUS = 13;
  private static final int METHODID_REWRAP_SECRETS = 14;
  private static final int METHODID_VERIFY_AUDIT = 15;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_CREATE_IDENTITY:
          serviceImpl.createIdentity((dev.credentialbroker.v1.CreateIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.CreateIdentityResponse>) responseObserver);
          break;
        case METHODID_IMPORT_IDENTITY:
          serviceImpl.importIdentity((dev.credentialbroker.v1.ImportIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ImportIdentityResponse>) responseObserver);
          break;
        case METHODID_GET_IDENTITY:
          serviceImpl.getIdentity((dev.credentialbroker.v1.GetIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetIdentityResponse>) responseObserver);
          break;
        case METHODID_LIST_IDENTITIES:
          serviceImpl.listIdentities((dev.credentialbroker.v1.ListIdentitiesRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListIdentitiesResponse>) responseObserver);
          break;
        case METHODID_UPDATE_IDENTITY:
          serviceImpl.updateIdentity((dev.credentialbroker.v1.UpdateIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.UpdateIdentityResponse>) responseObserver);
          break;
        case METHODID_ROTATE_IDENTITY_KEY:
          serviceImpl.rotateIdentityKey((dev.credentialbroker.v1.RotateIdentityKeyRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RotateIdentityKeyResponse>) responseObserver);
          break;
        case METHODID_REAUTHENTICATE_IDENTITY:
          serviceImpl.reauthenticateIdentity((dev.credentialbroker.v1.ReauthenticateIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ReauthenticateIdentityResponse>) responseObserver);
          break;
        case METHODID_DISABLE_IDENTITY:
          serviceImpl.disableIdentity((dev.credentialbroker.v1.DisableIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.DisableIdentityResponse>) responseObserver);
          break;
        case METHODID_ENABLE_IDENTITY:
          serviceImpl.enableIdentity((dev.credentialbroker.v1.EnableIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.EnableIdentityResponse>) responseObserver);
          break;
        case METHODID_DELETE_IDENTITY:
          serviceImpl.deleteIdentity((dev.credentialbroker.v1.DeleteIdentityRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.DeleteIdentityResponse>) responseObserver);
          break;
        case METHODID_GET_TASK:
          serviceImpl.getTask((dev.credentialbroker.v1.GetTaskRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetTaskResponse>) responseObserver);
          break;
        case METHODID_LIST_TASKS:
          serviceImpl.listTasks((dev.credentialbroker.v1.ListTasksRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListTasksResponse>) responseObserver);
          break;
        case METHODID_REVOKE_TASK:
          serviceImpl.revokeTask((dev.credentialbroker.v1.RevokeTaskRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RevokeTaskResponse>) responseObserver);
          break;
        case METHODID_GET_STATUS:
          serviceImpl.getStatus((dev.credentialbroker.v1.GetStatusRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetStatusResponse>) responseObserver);
          break;
        case METHODID_REWRAP_SECRETS:
          serviceImpl.rewrapSecrets((dev.credentialbroker.v1.RewrapSecretsRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RewrapSecretsResponse>) responseObserver);
          break;
        case METHODID_VERIFY_AUDIT:
          serviceImpl.verifyAudit((dev.credentialbroker.v1.VerifyAuditRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.VerifyAuditResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getCreateIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.CreateIdentityRequest,
              dev.credentialbroker.v1.CreateIdentityResponse>(
                service, METHODID_CREATE_IDENTITY)))
        .addMethod(
          getImportIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.ImportIdentityRequest,
              dev.credentialbroker.v1.ImportIdentityResponse>(
                service, METHODID_IMPORT_IDENTITY)))
        .addMethod(
          getGetIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.GetIdentityRequest,
              dev.credentialbroker.v1.GetIdentityResponse>(
                service, METHODID_GET_IDENTITY)))
        .addMethod(
          getListIdentitiesMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.ListIdentitiesRequest,
              dev.credentialbroker.v1.ListIdentitiesResponse>(
                service, METHODID_LIST_IDENTITIES)))
        .addMethod(
          getUpdateIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.UpdateIdentityRequest,
              dev.credentialbroker.v1.UpdateIdentityResponse>(
                service, METHODID_UPDATE_IDENTITY)))
        .addMethod(
          getRotateIdentityKeyMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.RotateIdentityKeyRequest,
              dev.credentialbroker.v1.RotateIdentityKeyResponse>(
                service, METHODID_ROTATE_IDENTITY_KEY)))
        .addMethod(
          getReauthenticateIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.ReauthenticateIdentityRequest,
              dev.credentialbroker.v1.ReauthenticateIdentityResponse>(
                service, METHODID_REAUTHENTICATE_IDENTITY)))
        .addMethod(
          getDisableIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.DisableIdentityRequest,
              dev.credentialbroker.v1.DisableIdentityResponse>(
                service, METHODID_DISABLE_IDENTITY)))
        .addMethod(
          getEnableIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.EnableIdentityRequest,
              dev.credentialbroker.v1.EnableIdentityResponse>(
                service, METHODID_ENABLE_IDENTITY)))
        .addMethod(
          getDeleteIdentityMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.DeleteIdentityRequest,
              dev.credentialbroker.v1.DeleteIdentityResponse>(
                service, METHODID_DELETE_IDENTITY)))
        .addMethod(
          getGetTaskMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.GetTaskRequest,
              dev.credentialbroker.v1.GetTaskResponse>(
                service, METHODID_GET_TASK)))
        .addMethod(
          getListTasksMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.ListTasksRequest,
              dev.credentialbroker.v1.ListTasksResponse>(
                service, METHODID_LIST_TASKS)))
        .addMethod(
          getRevokeTaskMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.RevokeTaskRequest,
              dev.credentialbroker.v1.RevokeTaskResponse>(
                service, METHODID_REVOKE_TASK)))
        .addMethod(
          getGetStatusMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.GetStatusRequest,
              dev.credentialbroker.v1.GetStatusResponse>(
                service, METHODID_GET_STATUS)))
        .addMethod(
          getRewrapSecretsMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.RewrapSecretsRequest,
              dev.credentialbroker.v1.RewrapSecretsResponse>(
                service, METHODID_REWRAP_SECRETS)))
        .addMethod(
          getVerifyAuditMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.VerifyAuditRequest,
              dev.credentialbroker.v1.VerifyAuditResponse>(
                service, METHODID_VERIFY_AUDIT)))
        .build();
  }

  private static abstract class BrokerAdminBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    BrokerAdminBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.credentialbroker.v1.BrokerAdminProto.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("BrokerAdmin");
    }
  }

  private static final class BrokerAdminFileDescriptorSupplier
      extends BrokerAdminBaseDescriptorSupplier {
    BrokerAdminFileDescriptorSupplier() {}
  }

  private static final class BrokerAdminMethodDescriptorSupplier
      extends BrokerAdminBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    BrokerAdminMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (BrokerAdminGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new BrokerAdminFileDescriptorSupplier())
              .addMethod(getCreateIdentityMethod())
              .addMethod(getImportIdentityMethod())
              .addMethod(getGetIdentityMethod())
              .addMethod(getListIdentitiesMethod())
              .addMethod(getUpdateIdentityMethod())
              .addMethod(getRotateIdentityKeyMethod())
              .addMethod(getReauthenticateIdentityMethod())
              .addMethod(getDisableIdentityMethod())
              .addMethod(getEnableIdentityMethod())
              .addMethod(getDeleteIdentityMethod())
              .addMethod(getGetTaskMethod())
              .addMethod(getListTasksMethod())
              .addMethod(getRevokeTaskMethod())
              .addMethod(getGetStatusMethod())
              .addMethod(getRewrapSecretsMethod())
              .addMethod(getVerifyAuditMethod())
              .build();
        }
      }
    }
    return result;
  }
}
